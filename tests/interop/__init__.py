"""Tests against real peers: uWSGI, gunicorn, nginx, HAProxy, curl, ab, wrk and others."""
