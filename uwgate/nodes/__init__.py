"""The command ``uwgate nodes``: who serves which key, asked of a running gateway."""
