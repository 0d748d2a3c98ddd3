"""Scans for malware by clamd, the daemon of ClamAV."""
