"""Gateways, exchanges and connections to nodes: the only room that knows asyncio transports."""
