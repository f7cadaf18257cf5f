"""Processes: binding, forking, supervising, draining. No asyncio in the master process itself."""
