# Tools that need no partner.
register devinfo "$BOTH" 'devinfo $variant'
