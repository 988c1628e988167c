"""What those who run fathom need: an audit log, statistics, kill switches, retention."""
