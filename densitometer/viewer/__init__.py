"""The explorer: an interactive page that shows measurements and, with a model behind it, runs more.

The page is `static/explorer.js`, built from the sources in `viewer/` at the root. One format, the
payload, carries measurements to it.

    payload.py    measurements to a payload
    long.py       edges of a long input, which are computed tile by tile
    reading.py    what a model computes for the page: logit lens, vectors of edges, chosen edges
    answers.py    questions that the page may ask, and their answers
    page.py       a payload to one self-contained HTML file
    server.py     the page on a local address, with a model behind it
    notebook.py   the page in a notebook cell
"""
