"""Operations on the cluster itself: settings, nodes, certificates, audit trail, web sessions."""
