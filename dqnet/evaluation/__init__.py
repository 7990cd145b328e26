"""What is measured of a trained network: budgets, curves, controls and cascades."""
