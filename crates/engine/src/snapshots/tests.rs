//! The store as a whole, with real files in directories of their own.

mod damage;
mod golden;
mod life;
mod limits;
mod offline;
