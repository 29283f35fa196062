//! Content-defined cutting, hashing and compression: directories and tars into chunks and trees, and back.
