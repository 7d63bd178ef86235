"""Before a run: will it work, what will it cost, and what does Curvature Tuning reach?"""
