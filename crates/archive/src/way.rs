//! The directories that lead to the entry before: the next one mostly lies in one of them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Directories that are held open. An archive may be deeper than a process may have files open.
const MOST_OPEN: usize = 64;

#[derive(Default)]
pub(crate) struct Way {
    path: Vec<u8>,
    /// Each with the length of its part of the path.
    open: VecDeque<(usize, Rc<OwnedFd>)>,
}

impl Way {
    /// The deepest open directory that leads to `path`, and what is left of the path from there.
    pub(crate) fn nearest<'p>(&mut self, path: &'p [u8]) -> (Option<Rc<OwnedFd>>, &'p [u8]) {
        while let Some((length, directory)) = self.open.back() {
            let leads_there = path.starts_with(&self.path[..*length]) && matches!(path.get(*length), None | Some(b'/'));
            if leads_there {
                return (Some(Rc::clone(directory)), &path[*length..]);
            }
            self.open.pop_back();
        }
        (None, path)
    }

    /// `path` was opened, from what [`Way::nearest`] gave.
    pub(crate) fn went(&mut self, path: &[u8], directory: &Rc<OwnedFd>) {
        path.clone_into(&mut self.path);
        self.open.push_back((path.len(), Rc::clone(directory)));
        if self.open.len() > MOST_OPEN {
            self.open.pop_front();
        }
    }

    /// A directory was taken away: it may be one of them.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
    }
}
