"""Mixed precision: which nodes cost most in int8, and the fewest to leave float for a target.

variants.py     plans that leave other nodes float, emulated from where they begin to differ
sensitivity.py  what each node costs, ranked
goals.py        what has to hold, and by how much a plan holds it
search.py       the fewest nodes to leave float so that it holds
stage.py        all of it as a stage of the pipeline, and what is reported
"""
