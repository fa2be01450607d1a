resource "aws_vpc" "parent" {
  cidr_block           = var.network
  enable_dns_support   = true
  enable_dns_hostnames = true

  #checkov:skip=CKV2_AWS_11:flow logs cost by what flows; host-netd counts and reports flows itself
}

# Nothing gets it, so it permits nothing.
resource "aws_default_security_group" "unused" {
  vpc_id = aws_vpc.parent.id
}

data "aws_ec2_instance_type_offerings" "fit" {
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = [var.instance_type]
  }
}

# Not every zone has every type.
resource "aws_subnet" "parent" {
  vpc_id            = aws_vpc.parent.id
  cidr_block        = var.network
  availability_zone = sort(data.aws_ec2_instance_type_offerings.fit.locations)[0]

  # It stays where it is when another zone gets the type.
  lifecycle {
    ignore_changes = [availability_zone]
  }
}

resource "aws_internet_gateway" "parent" {
  vpc_id = aws_vpc.parent.id
}

resource "aws_route_table" "parent" {
  vpc_id = aws_vpc.parent.id

  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.parent.id
  }
}

resource "aws_route_table_association" "parent" {
  subnet_id      = aws_subnet.parent.id
  route_table_id = aws_route_table.parent.id
}

# Only what is published comes in, and no SSH: Session Manager needs no open port.
resource "aws_security_group" "parent" {
  name_prefix = "${var.name}-parent-"
  description = "Published ports of the enclave"
  vpc_id      = aws_vpc.parent.id

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "published" {
  for_each = {
    for pair in setproduct(local.published, var.clients) :
    "${pair[0].port}/${pair[0].protocol} ${pair[1]}" => { port = pair[0].port, protocol = pair[0].protocol, client = pair[1] }
  }

  security_group_id = aws_security_group.parent.id
  description       = "Published by the enclave"
  ip_protocol       = each.value.protocol
  from_port         = each.value.port
  to_port           = each.value.port
  cidr_ipv4         = each.value.client
}

resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.parent.id
  description       = "host-netd's rules decide what the enclave reaches"
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
}

# The address belongs to the interface, so that it is there before the instance boots for the first time,
# and stays when the instance is replaced.
resource "aws_network_interface" "parent" {
  subnet_id       = aws_subnet.parent.id
  security_groups = [aws_security_group.parent.id]
}

resource "aws_eip" "parent" {
  domain            = "vpc"
  network_interface = aws_network_interface.parent.id

  depends_on = [aws_internet_gateway.parent]

  #checkov:skip=CKV2_AWS_19:it is the address of the interface, which is the instance's
}
