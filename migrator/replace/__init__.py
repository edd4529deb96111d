"""``replace_table``: one table in the place of another, with both kept right from expanded to the swap.

One of the two tables is *authoritative* at any time, for the clients of both versions: the old one until all of
``auto`` went over (the *flip*), then the new one. The *mirror* carries every write on the authoritative table to the
other one (forward), and a write that reached the other one by some other way back to it (reverse).
"""
