"""The page: `fastdiff ui` serves it on this machine.

fields, operations, recipes: forms as data. pictures, tasks, visits: what the server keeps in memory, and the one thread
that works. guard, app, serve: the door, the routes, the socket. static/: the page, plain HTML, CSS and JavaScript.
"""
