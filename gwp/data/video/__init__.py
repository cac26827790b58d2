"""Video files: frames at given times, and where one shot ends and the next begins."""
