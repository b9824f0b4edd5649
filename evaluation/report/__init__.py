"""The comparison report: what it shows is gathered, drawn and worded here, and put together by `page`."""
