//! The Markov model of first touches: learn, merge, prune, predict, replay, score. A pure function of history.
