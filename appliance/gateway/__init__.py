"""The one door: TLS, identities, roles, limits, audit; everything else is behind it.

``python -m appliance.gateway.server --fd N --home HOME`` serves on a listening socket opened
outside the seal. A request goes through these steps, each a module of its own:

1. ``paths``: the path is made canonical or refused; nothing is decoded twice.
2. ``routes``: the table of everything that exists, and who may; what is not in it is refused.
3. ``identity``: the API key (``Authorization: Bearer``), or for ``/ray/`` the login session.
4. ``limits``: per key, a rate and a number of requests at once.
5. a handler: ``inference`` (to Serve), ``ray_console`` (to Ray's dashboard), ``admin``,
   ``fine_tuning``, ``console`` (login).
6. ``audit``: what was done is durable on the ledger before the answer is complete. While the
   ledger cannot be written, the gateway answers 503 and does nothing.

Headers are passed by allow-list, in both directions. What a client sends as ``X-Appliance-*`` never
reaches Serve, and Serve's answers carry nothing but their content.
"""
