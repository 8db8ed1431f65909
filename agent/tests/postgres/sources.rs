//! Where migrations come from: dbmate's files, text versions, hand-written ways down.

mod dbmate;
mod manual;
mod text_versions;
