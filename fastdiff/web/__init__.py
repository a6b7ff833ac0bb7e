"""The page: `fastdiff ui` serves it on this machine.

fields, operations, table, recipes: forms as data. pictures, tasks, visits, limits: what the server keeps in memory, and
the one thread that works. guard, reading, app, serve: the door, the routes, the socket. static/: the page itself, plain
HTML, CSS and JavaScript.
"""
