"""What differs between Linux, macOS and Windows. Functions take the system as `sys.platform` names it, for tests."""
