"""What a run needs of the machine: devices, other processes, files, locks and signals."""
