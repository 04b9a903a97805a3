"""What a run will take: hours by rates of earlier runs, disk against free space, in words and as JSON."""
