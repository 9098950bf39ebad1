"""From results files to a comparison report: one page, a summary, tables and figures.

::

    load.py        reads and checks the JSON files          -> Results (plain pandas frames)
    intervals.py   medians, ratios, geometric means with confidence intervals
    verdict.py     who is compared with whom, and the word for it
    tables.py      accuracy, compiled kernels, what was not run, environments
    report.py      all of these numbers, computed once
    headline.py    the report in a few sentences
    page.py        what the page says, as plain data for templates/
    figures.py     what is drawn; chart.py draws it, as SVG or PNG; drawing.py is matplotlib without the user's settings
    render.py      page, summary, tables and figures as text
    files.py       all of it written, or nothing
    __main__.py    the command line

This package reads files only: it knows nothing of bench or triton_dirac, so that a report can be made
anywhere, from anyone's results, years later.
"""
