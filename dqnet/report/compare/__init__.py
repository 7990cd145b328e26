"""Tables and a figure over many finished runs: ``python -m dqnet.report.compare``."""
