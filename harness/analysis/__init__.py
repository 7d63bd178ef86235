"""Statistics on outcomes per image: metrics, intervals, tests, and the choice of β. Pure."""
