"""The event loop: gateways, exchanges and connections to nodes. The only room that knows asyncio."""
