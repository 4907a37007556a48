"""The way of the bytes, in the order they travel.

    app (routes) -> admission -> source (where input comes from) -> execute (run the transform)
    -> deliver (answer, or direct put)

`websocket` stands beside `app`; `flow` and `threads` are what the stages pass bytes and work with; `worker` is what
one process has of all this, and `serve` starts the processes.
"""
