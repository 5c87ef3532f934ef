//! What may a user of the cluster?

use std::collections::HashSet;

use crate::guard::access::Access;

/// Users and groups of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subjects {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub users: HashSet<String>,
    /// `system:serviceaccounts:NAMESPACE`, all of a namespace.
    pub groups: HashSet<String>,
}

impl Subjects {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    fn have(&self, user: &str, groups: &[String]) -> bool {
        self.users.contains(user) || groups.iter().any(|g| self.groups.contains(g))
    }
}

/// Who has which right, and those before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// See [`Access::Read`].
    pub read: Subjects,
    /// See [`Access::Route`].
    pub route: Subjects,
    /// See [`Access::Write`].
    pub write: Subjects,
}

impl Grants {
    /// Those of each right, the least first.
    pub fn by_right(&self) -> [(Access, &Subjects); 3] {
        [(Access::Read, &self.read), (Access::Route, &self.route), (Access::Write, &self.write)]
    }

    /// The highest right of a user.
    pub fn right_of(&self, user: &str, groups: &[String]) -> Option<Access> {
        let rights = self.by_right().into_iter().rev();
        rights.into_iter().find(|(_, subjects)| subjects.have(user, groups)).map(|(right, _)| right)
    }
}
