"""What people look at: tables, curves, pages, sites and exports of a leaderboard."""
