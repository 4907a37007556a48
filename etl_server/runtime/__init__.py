"""The way of the bytes, in the order they travel.

    app (routes) -> admission -> source (where input comes from) -> execute (run the transform)
    -> deliver (answer, or direct put)

`websocket` stands beside `app`, and `stores` beside `source` and `deliver`; `flow` and `threads` are what the stages
pass bytes and work with; `worker` is what one process has of all this. `serve` starts it, `lifecycle` is how it stops,
and `supervise` is for several processes.
"""
