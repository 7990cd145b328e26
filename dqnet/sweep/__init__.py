"""Many runs at once: what became of them, and what each may use of the machine.

What Hydra has to do with it is in ``hydra_plugins/dqnet_sweeps``, where Hydra looks for it.
"""
