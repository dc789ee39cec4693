"""What the scripts share: data, streams, networks, and how a result file is written."""
