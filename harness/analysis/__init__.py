"""Statistics of outcomes: metrics, intervals, tests, and the selection of β. Pure."""
