"""One short program for each thing that the server can do: `python -m quietserve.clients.examples.show_thoughts`.

They ask the server at QUIETSERVE_URL (http://127.0.0.1:8000), with the key in QUIETSERVE_API_KEY if there is one. In a
program of your own, write `from quietserve.clients.client import Client`.
"""
