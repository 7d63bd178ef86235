"""Leaderboards: from outcomes to ranked rows and the CSV; comparison and the nightly gate."""
