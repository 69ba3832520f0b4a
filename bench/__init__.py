"""Side-by-side measurements: what we do ÷ the bare tool doing the least that could be called it.

`python -m bench` runs all and writes RESULTS.md; `python -m bench NAME...` runs some and prints.
"""
