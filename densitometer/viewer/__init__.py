"""The explorer: one page (`static/`, built from the sources in `viewer/` at the root), fed by one payload format.

payload.py    measurements -> the payload
reading.py    what a model answers while the page is open: logit lens, what an edge writes, chosen edges
page.py       payload -> one HTML file that needs nothing else
server.py     the page on a local address, with a model behind it
notebook.py   the page in a notebook cell
"""
