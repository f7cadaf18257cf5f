"""``uwgate announce``: announce any server to subscription servers while it is well."""
