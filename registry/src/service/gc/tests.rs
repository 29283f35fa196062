//! Random histories of pushes, deletes, undeletes, pulls, collections and crashes, against a model of what is visible.
//!
//! One invariant, looked at after every step: all that a visible manifest needs is there and reads back right. And at the end:
//! after enough collections without disturbance nothing is left that nothing leads to.

mod damage;
mod histories;
mod rules;
mod world;
