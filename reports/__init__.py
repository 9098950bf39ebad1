"""From results files to a comparison report: one page, a summary, tables and figures.

::

    load.py        reads and checks the JSON files          -> Results (plain pandas frames)
    intervals.py   medians, ratios, geometric means with confidence intervals
    verdict.py     who is compared with whom, and the word for it
    tables.py      accuracy, compiled kernels, what was not run, environments
    figures.py     strip plots as SVG or PNG
    render.py      the page and the summary from templates/
    __main__.py    the command line; writes every file atomically

This package reads files only: it knows nothing of bench or triton_dirac, so that a report can be made
anywhere, from anyone's results, years later.
"""
