//! Nothing: the walls are in `tests/`. They read the repository and its metadata, and run no server.
