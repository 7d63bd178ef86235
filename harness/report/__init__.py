"""Tables, curves, pages, sites and exports of leaderboards, for people."""
