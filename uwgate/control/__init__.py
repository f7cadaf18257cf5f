"""The commands ``uwgate reload``, ``stop`` and ``status``: orders over the control socket."""
