//! Where one device is on its way from one instance to another.
//!
//! ```text
//!                    ┌── to: Refused, or one of the two can't overlap ──┐
//! At ─► Joining ─ to: Ready ─► Leaving ─ from: Given ─► Entering ─ to: has the watermark ─► At
//!  └──────── owner gone ────────────────────────────────►┘
//! ```
//!
//! At any time at most one instance hands data to the broker: the heir not before it has the watermark, and the earlier
//! owner not after it has told it.

use std::{collections::BTreeMap, fmt};

use foreshore_control::{GivePlan, Resource, ResourceKey, Stage, TakePlan, Turn};
use foreshore_tls::RoleIdentity;

use super::{Holding, Member, take};

/// Where a device is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// One instance serves it.
    At {
        /// Which.
        owner: RoleIdentity,
    },
    /// The heir subscribes; the owner goes on.
    Joining {
        /// The owner.
        from: RoleIdentity,
        /// The heir.
        to: RoleIdentity,
        /// Which hand-over.
        number: u64,
    },
    /// The owner lets go.
    Leaving {
        /// The owner.
        from: RoleIdentity,
        /// The heir.
        to: RoleIdentity,
        /// Which hand-over.
        number: u64,
        /// Whether the heir is subscribed already.
        joined: bool,
        /// Whether the owner can say what it has handed over; one that is too old for that just loses the device.
        tells: bool,
    },
    /// The heir goes on.
    Entering {
        /// The earlier owner, while it is there: it keeps its watermark until the heir has it.
        from: Option<RoleIdentity>,
        /// The heir.
        to: RoleIdentity,
        /// Which hand-over.
        number: u64,
        /// After what.
        turn: Turn,
    },
}

/// What an instance has to do with a device.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Duty {
    /// Serve it.
    Serve,
    /// Take it.
    Take(TakePlan),
    /// Give it.
    Give(GivePlan),
}

/// What a step is decided by.
pub(super) struct Context<'a> {
    pub(super) device: &'a ResourceKey,
    pub(super) members: &'a [Member],
    pub(super) holdings: &'a BTreeMap<RoleIdentity, Holding>,
    /// Who shall serve the device; `None` when nobody can.
    pub(super) target: Option<&'a RoleIdentity>,
    /// Largest epoch that was told of the device.
    pub(super) epoch: u64,
    /// Whether it may begin to move.
    pub(super) may_move: bool,
    pub(super) last_number: &'a mut u64,
}

impl Context<'_> {
    fn member(&self, identity: &RoleIdentity) -> Option<&Member> {
        self.members.iter().find(|member| member.identity == *identity)
    }

    fn is_there(&self, identity: &RoleIdentity) -> bool {
        self.member(identity).is_some()
    }

    fn is_capable(&self, identity: &RoleIdentity) -> bool {
        self.member(identity).is_some_and(|member| member.capable)
    }

    fn number(&mut self) -> u64 {
        *self.last_number += 1;
        *self.last_number
    }

    /// What an instance said of this hand-over.
    fn told(&self, identity: &RoleIdentity, number: u64) -> Option<(Stage, u64, &[u8])> {
        let told = self.holdings.get(identity)?.told.as_ref()?;
        (told.number == number).then_some((told.stage, told.epoch, &told.watermark))
    }

    fn holding(&self, identity: &RoleIdentity) -> Option<&Holding> {
        self.holdings.get(identity)
    }

    fn lost(&mut self, to: RoleIdentity) -> Place {
        // What the earlier owner did is not known: the heir says so as a gap.
        let (turn, number) = (Turn::Lost { epoch: self.epoch }, self.number());
        self.enter(None, to, number, turn)
    }

    fn enter(&self, from: Option<RoleIdentity>, to: RoleIdentity, number: u64, turn: Turn) -> Place {
        if self.is_capable(&to) {
            Place::Entering {
                from,
                to,
                number,
                turn,
            }
        } else {
            Place::At { owner: to }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At { owner } => write!(f, "served by {}", owner.uid()),
            Self::Joining { from, to, .. } => {
                write!(f, "{} subscribes while {} serves", to.uid(), from.uid())
            }
            Self::Leaving { from, to, .. } => write!(f, "{} lets go for {}", from.uid(), to.uid()),
            Self::Entering {
                to,
                turn: Turn::Lost { .. },
                ..
            } => {
                write!(f, "{} goes on after a gap", to.uid())
            }
            Self::Entering { to, .. } => write!(f, "{} goes on", to.uid()),
        }
    }
}

impl Place {
    /// Where a device is by what the instances hold, for a leader that knows nothing else.
    pub(super) fn of(holdings: &BTreeMap<RoleIdentity, Holding>, last_number: &mut u64) -> Option<Self> {
        let which = |wanted: &dyn Fn(&Holding) -> bool| {
            let mut found = holdings.iter().filter(|(_, holding)| wanted(holding));
            found
                .next()
                .map(|(identity, holding)| (identity.clone(), holding))
        };
        let serving = which(&|holding| holding.serves());
        let giving = which(&|holding| holding.device && holding.give);
        let taking = which(&|holding| holding.device && holding.take.is_some() && !holding.serves());
        let mut number_of = |holding: &Holding| match holding.number() {
            0 => {
                *last_number += 1;
                *last_number
            }
            number => number,
        };
        Some(match (serving, giving, taking) {
            // Who serves has the whole device; a giver beside it has nothing more to say.
            (Some((from, _)), _, Some((to, holding))) => Self::Joining {
                from,
                to,
                number: number_of(holding),
            },
            (Some((owner, _)), _, None) => Self::At { owner },
            (None, Some((from, giver)), Some((to, _))) => Self::Leaving {
                number: number_of(giver),
                from,
                to,
                joined: true,
                tells: true,
            },
            // It has let go, and nobody has begun.
            (None, Some((from, giver)), None) => Self::Leaving {
                number: number_of(giver),
                to: from.clone(),
                from,
                joined: false,
                tells: true,
            },
            // The giver is gone with its watermark.
            (None, None, Some((to, holding))) => Self::Entering {
                from: None,
                number: number_of(holding),
                to,
                turn: Turn::Lost { epoch: 0 },
            },
            (None, None, None) => return None,
        })
    }

    /// Who has it, or will have it.
    pub(crate) fn owner(&self) -> &RoleIdentity {
        match self {
            Self::At { owner } => owner,
            Self::Joining { to, .. } | Self::Leaving { to, .. } | Self::Entering { to, .. } => to,
        }
    }

    pub(crate) fn is_moving(&self) -> bool {
        !matches!(self, Self::At { .. })
    }

    /// What an instance has to do with the device.
    pub(super) fn duty(&self, device: &ResourceKey, identity: &RoleIdentity) -> Option<Duty> {
        let give = |number, overlap| {
            Duty::Give(GivePlan {
                namespace: device.namespace.clone(),
                device: device.name.clone(),
                number,
                overlap,
            })
        };
        match self {
            Self::At { owner } => (owner == identity).then_some(Duty::Serve),
            Self::Joining { from, to, number } => {
                if from == identity {
                    Some(Duty::Serve)
                } else {
                    (to == identity).then(|| Duty::Take(take(device, *number, Turn::Wait)))
                }
            }
            Self::Leaving {
                from,
                to,
                number,
                joined,
                tells,
            } => {
                if from == identity {
                    tells.then(|| give(*number, *joined))
                } else {
                    let waits = *joined && to == identity;
                    waits.then(|| Duty::Take(take(device, *number, Turn::Wait)))
                }
            }
            Self::Entering {
                from,
                to,
                number,
                turn,
            } => {
                if to == identity {
                    Some(Duty::Take(take(device, *number, turn.clone())))
                } else {
                    let keeps = from.as_ref() == Some(identity);
                    keeps.then(|| give(*number, true))
                }
            }
        }
    }
}

/// The next place of a device, if what was told leads on.
pub(super) fn step(place: Option<&Place>, context: &mut Context<'_>) -> Option<Place> {
    let Some(place) = place else {
        let owner = context.target?.clone();
        return Some(if context.epoch > 0 {
            // It was served before, by someone who is gone.
            context.lost(owner)
        } else {
            Place::At { owner }
        });
    };
    match place {
        Place::At { owner } => at(owner, context),
        Place::Joining { from, to, number } => joining(from, to, *number, context),
        Place::Leaving {
            from,
            to,
            number,
            joined,
            tells,
        } => {
            let going = Going {
                from,
                to,
                number: *number,
                joined: *joined,
                tells: *tells,
            };
            leaving(&going, context)
        }
        Place::Entering {
            from,
            to,
            number,
            turn,
        } => entering(from.as_ref(), to, *number, turn, context),
    }
}

fn at(owner: &RoleIdentity, context: &mut Context<'_>) -> Option<Place> {
    let target = context.target?.clone();
    if target == *owner {
        return None;
    }
    let Some(member) = context.member(owner) else {
        return Some(context.lost(target));
    };
    // Who is silent goes on with what it has, and could not be told to stop.
    if !member.connected || !context.may_move {
        return None;
    }
    let tells = member.capable;
    let overlap = tells && context.is_capable(&target);
    let number = context.number();
    let (from, to) = (owner.clone(), target);
    Some(if overlap {
        Place::Joining { from, to, number }
    } else {
        Place::Leaving {
            from,
            to,
            number,
            joined: false,
            tells,
        }
    })
}

fn joining(from: &RoleIdentity, to: &RoleIdentity, number: u64, context: &mut Context<'_>) -> Option<Place> {
    if !context.is_there(to) {
        return Some(Place::At { owner: from.clone() });
    }
    if !context.is_there(from) {
        return Some(context.lost(to.clone()));
    }
    // Nothing has happened yet that could not be taken back.
    if context.target.is_some_and(|target| target != to) {
        return Some(Place::At { owner: from.clone() });
    }
    let joined = match context.told(to, number)?.0 {
        Stage::Ready => true,
        Stage::Refused => false,
        Stage::Serving | Stage::Given => return None,
    };
    Some(Place::Leaving {
        from: from.clone(),
        to: to.clone(),
        number,
        joined,
        tells: true,
    })
}

/// An owner that lets go.
struct Going<'a> {
    from: &'a RoleIdentity,
    to: &'a RoleIdentity,
    number: u64,
    joined: bool,
    tells: bool,
}

fn leaving(going: &Going<'_>, context: &mut Context<'_>) -> Option<Place> {
    let Going {
        from,
        to,
        number,
        joined,
        tells,
    } = *going;
    // It has stopped, or is about to: there is no way back to before, only on to whoever is there.
    let target = context.target.cloned();
    let heir = if context.is_there(to) && (joined || target.is_none()) {
        to.clone()
    } else {
        target?
    };
    if !context.is_there(from) {
        return Some(context.lost(heir));
    }
    if heir == *from {
        // Told to give no more, it goes on after its own watermark.
        return Some(Place::At { owner: heir });
    }
    if let Some((Stage::Given, epoch, watermark)) = context.told(from, number) {
        let turn = Turn::after(epoch.max(context.epoch), watermark);
        return Some(context.enter(Some(from.clone()), heir, number, turn));
    }
    // An instance that does not say what it has given has let go when the device is gone from it.
    let answers = context.member(from).is_some_and(|member| member.connected);
    if !tells && answers && context.holding(from).is_none_or(|holding| !holding.device) {
        return Some(context.lost(heir));
    }
    (heir != *to).then(|| Place::Leaving {
        from: from.clone(),
        to: heir,
        number,
        joined: false,
        tells,
    })
}

fn entering(
    from: Option<&RoleIdentity>,
    to: &RoleIdentity,
    number: u64,
    turn: &Turn,
    context: &mut Context<'_>,
) -> Option<Place> {
    if !context.is_there(to) {
        let heir = context.target.filter(|target| *target != to)?.clone();
        return Some(match from.filter(|from| context.is_there(from)) {
            // The one between may have begun: its numbers are larger.
            Some(from) if heir == *from => context.lost(heir),
            // What the one between has handed over is not known any more: all that is known is what came before.
            Some(from) => context.enter(Some(from.clone()), heir, number, turn.clone()),
            None => context.lost(heir),
        });
    }
    if let Some(gone) = from
        && !context.is_there(gone)
    {
        return Some(Place::Entering {
            from: None,
            to: to.clone(),
            number,
            turn: turn.clone(),
        });
    }
    let order = Resource::of(&take(context.device, number, turn.clone()))
        .ok()?
        .hash();
    let holding = context.holding(to)?;
    (holding.take == Some(order) && holding.device).then(|| Place::At { owner: to.clone() })
}
