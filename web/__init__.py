"""What all web pages share: access rules, the application, the server and the style."""
