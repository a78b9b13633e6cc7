"""One translation: what goes in and what comes out, decided, run, and reported.

`inputs` finds the sources, `plan` decides everything else before a frame is read, `pipeline` runs
a plan and is the only owner of threads, `report` counts what came of it, and `preview` draws a few
frames.
"""
