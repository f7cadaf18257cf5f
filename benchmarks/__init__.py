"""Side-by-side measurements of uwgate and its peers: see docs/benchmarks.md.

``python -m benchmarks`` compares, ``python -m benchmarks.soak`` lets it run under fire.
"""
