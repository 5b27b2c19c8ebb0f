//! Reason codes (MQTT 5.0 section 2.4) and what MQTT 3 makes of them.

/// Declares the codes that we send or understand, with the words that go into reason strings and logs.
macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)+) => {
        /// Why something was refused or ended, as MQTT 5 says it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ReasonCode {
            $($(#[$doc])* $name = $code,)+
        }

        impl ReasonCode {
            /// The code in words.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

reason_codes! {
    /// Success, normal disconnection or granted quality of service 0.
    Success = 0x00, "success";
    /// Granted quality of service 1.
    GrantedQos1 = 0x01, "granted quality of service 1";
    /// Granted quality of service 2.
    GrantedQos2 = 0x02, "granted quality of service 2";
    /// The client leaves and wants its will published.
    DisconnectWithWill = 0x04, "disconnect with will message";
    /// The message was taken in, and nobody subscribes to it.
    NoMatchingSubscribers = 0x10, "no matching subscribers";
    /// The filter to unsubscribe from was not subscribed to.
    NoSubscriptionExisted = 0x11, "no subscription existed";
    /// No other code fits.
    UnspecifiedError = 0x80, "unspecified error";
    /// The packet can't be decoded.
    MalformedPacket = 0x81, "malformed packet";
    /// The packet is not allowed here or now.
    ProtocolError = 0x82, "protocol error";
    /// Valid, but not accepted by this server.
    ImplementationSpecificError = 0x83, "implementation specific error";
    /// Neither 3.1, 3.1.1 nor 5.0.
    UnsupportedProtocolVersion = 0x84, "unsupported protocol version";
    /// The client identifier is not allowed.
    ClientIdentifierNotValid = 0x85, "client identifier not valid";
    /// User name or password are wrong.
    BadUserNameOrPassword = 0x86, "bad user name or password";
    /// Not allowed by policy.
    NotAuthorized = 0x87, "not authorized";
    /// The server can't serve now.
    ServerUnavailable = 0x88, "server unavailable";
    /// The server has too much to do.
    ServerBusy = 0x89, "server busy";
    /// The server ends.
    ServerShuttingDown = 0x8b, "server shutting down";
    /// The authentication method is not supported.
    BadAuthenticationMethod = 0x8c, "bad authentication method";
    /// Nothing was heard for one and a half times the keep alive.
    KeepAliveTimeout = 0x8d, "keep alive timeout";
    /// Another connection uses the same client identifier.
    SessionTakenOver = 0x8e, "session taken over";
    /// The filter is not valid.
    TopicFilterInvalid = 0x8f, "topic filter invalid";
    /// The topic name is not valid.
    TopicNameInvalid = 0x90, "topic name invalid";
    /// The packet identifier is in use.
    PacketIdentifierInUse = 0x91, "packet identifier in use";
    /// The packet identifier is not known.
    PacketIdentifierNotFound = 0x92, "packet identifier not found";
    /// More messages in flight than the server announced.
    ReceiveMaximumExceeded = 0x93, "receive maximum exceeded";
    /// The topic alias is zero, too large or not known.
    TopicAliasInvalid = 0x94, "topic alias invalid";
    /// Larger than the server announced.
    PacketTooLarge = 0x95, "packet too large";
    /// Messages arrive too fast.
    MessageRateTooHigh = 0x96, "message rate too high";
    /// A limit was reached.
    QuotaExceeded = 0x97, "quota exceeded";
    /// A person ended the connection.
    AdministrativeAction = 0x98, "administrative action";
    /// The payload is not what its format indicator says.
    PayloadFormatInvalid = 0x99, "payload format invalid";
    /// Retained messages are switched off.
    RetainNotSupported = 0x9a, "retain not supported";
    /// The quality of service is not supported.
    QosNotSupported = 0x9b, "quality of service not supported";
    /// Another server is to be used for now.
    UseAnotherServer = 0x9c, "use another server";
    /// Another server is to be used from now on.
    ServerMoved = 0x9d, "server moved";
    /// Shared subscriptions are switched off.
    SharedSubscriptionsNotSupported = 0x9e, "shared subscriptions not supported";
    /// Connections arrive too fast, or there are too many.
    ConnectionRateExceeded = 0x9f, "connection rate exceeded";
    /// The longest time of a connection passed.
    MaximumConnectTime = 0xa0, "maximum connect time";
    /// Subscription identifiers are switched off.
    SubscriptionIdentifiersNotSupported = 0xa1, "subscription identifiers not supported";
    /// Wildcards are switched off.
    WildcardSubscriptionsNotSupported = 0xa2, "wildcard subscriptions not supported";
}

impl ReasonCode {
    /// The byte on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Whether it tells of a failure.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.code() >= 0x80
    }

    /// Whether it sends the client to another server.
    #[must_use]
    pub fn is_redirect(self) -> bool {
        matches!(self, Self::UseAnotherServer | Self::ServerMoved)
    }

    /// The CONNACK return code of MQTT 3.1.1 (section 3.2.2.3) that comes nearest.
    #[must_use]
    pub fn to_v3_connect(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::UnsupportedProtocolVersion => 1,
            Self::ClientIdentifierNotValid => 2,
            Self::BadUserNameOrPassword => 4,
            Self::NotAuthorized | Self::BadAuthenticationMethod => 5,
            _ => 3,
        }
    }
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} (0x{:02x})", self.text(), self.code())
    }
}
