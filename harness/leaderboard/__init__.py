"""From outcomes to ranked rows and the CSV; comparing boards and holding a fresh one against a committed one."""
