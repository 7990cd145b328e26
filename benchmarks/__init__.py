"""What the README's speed tables are made with."""
